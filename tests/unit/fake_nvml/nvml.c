/* A stand-in for NVIDIA's libnvidia-ml.so.1, the only thing simulated in the tests of metalscribe's GPU health.
 *
 * Cards that fall off the bus, drivers that do not match their library and slices of a data-centre GPU cannot be had on a
 * build machine. This library answers the C API of NVML as its reference describes it
 * (https://docs.nvidia.com/deploy/nvml-api/) to the genuine Python binding, with values from a control file. It carries
 * no code of NVIDIA's.
 *
 * FAKE_NVML_CONTROL names the file, which is read anew at each call: one "key value" per line. A value that is not there
 * makes its function answer "not supported". Keys:
 *   count, driver_version, cuda_version            of the system
 *   init_ms                                        how long nvmlInit takes, in milliseconds
 *   error.<function>, error.*                      return code of a function, or of all but init and shutdown
 *   gpu<i>.<value>, gpu<i>.mig<j>.<value>          of a GPU, or of slice j of it, which exists if it has a uuid
 *   gpu<i>.error.<function>, gpu<i>.error.*        return code for this GPU
 *   gpu<i>.lost 1                                  the GPU is lost, and stays so until NVML is initialised anew
 *   gpu<i>.xid                                     an XID error, told once to whoever has registered for it
 *
 * The sizes of the structures come from the Python binding's own declarations (-DSIZEOF_...): should the two ever differ,
 * this file does not compile. -DOLD_LIBRARY leaves out the functions that old drivers lack.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef int result;
typedef unsigned int uint;
typedef unsigned long long ull;
typedef struct device { int gpu, slice; } device;

typedef struct { ull total, free, used; } memory_v1;
typedef struct { uint version; ull total, reserved, free, used; } memory_v2;
typedef struct { uint gpu, memory; } utilization;
typedef struct { char bus_id_legacy[16]; uint domain, bus, device, pci_device_id, pci_subsystem_id; char bus_id[32]; } pci_info;
typedef struct { uint version, sensor; int temperature; } temperature_v1;
typedef struct { uint pid; ull used; uint gpu_instance, compute_instance; } process;
typedef struct { device *device; ull type, data; uint gpu_instance, compute_instance; } event;

_Static_assert(sizeof(memory_v1) == SIZEOF_MEMORY_V1, "nvmlMemory_t");
_Static_assert(sizeof(memory_v2) == SIZEOF_MEMORY_V2, "nvmlMemory_v2_t");
_Static_assert(sizeof(utilization) == SIZEOF_UTILIZATION, "nvmlUtilization_t");
_Static_assert(sizeof(pci_info) == SIZEOF_PCI_INFO, "nvmlPciInfo_t");
_Static_assert(sizeof(temperature_v1) == SIZEOF_TEMPERATURE_V1, "nvmlTemperature_v1_t");
_Static_assert(sizeof(process) == SIZEOF_PROCESS, "nvmlProcessInfo_t");
_Static_assert(sizeof(event) == SIZEOF_EVENT, "nvmlEventData_t");

#define GPUS 4
#define SLICES 8
#define EVENTS 1024
#define XID_EVENT 8ULL

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int references, initialisations, event_sets;
static int lost[GPUS];
static device cards[GPUS], aliases[GPUS];
static ull watched[GPUS];
static event queue[EVENTS];
static int queued;
static ull xid_told[GPUS];

/* --- what only the tests call ------------------------------------------------------------------------------------- */

int fake_references(void) { return references; }
int fake_initialisations(void) { return initialisations; }
int fake_event_sets(void) { return event_sets; }

/* An XID error of a GPU, told to whoever registered for it; `alias` tells it under another handle of the same GPU. */
int fake_raise_xid(int gpu, ull xid, int alias) {
    pthread_mutex_lock(&lock);
    int told = references > 0 && (watched[gpu] & XID_EVENT) && queued < EVENTS;
    if (told) {
        aliases[gpu] = cards[gpu];
        queue[queued++] = (event){alias ? &aliases[gpu] : &cards[gpu], XID_EVENT, xid, ~0U, ~0U};
    }
    pthread_mutex_unlock(&lock);
    return told;
}

/* --- the control file --------------------------------------------------------------------------------------------- */

static int setting(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    char line[512];
    size_t length = strlen(key);
    int found = 0;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) || (line[length] != ' ' && line[length] != '\n')) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(value, size, "%s", line[length] ? line + length + 1 : "");
        found = 1;
    }
    fclose(file);
    return found;
}

static ull number(const char *key, ull otherwise) {
    char value[64];
    return setting(key, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

static void key_of(const device *d, const char *name, char *key, size_t size) {
    if (d->slice < 0) snprintf(key, size, "gpu%d.%s", d->gpu, name);
    else snprintf(key, size, "gpu%d.mig%d.%s", d->gpu, d->slice, name);
}

static result text_of(const device *d, const char *name, char *value, size_t size) {
    char key[160];
    key_of(d, name, key, sizeof key);
    return setting(key, value, size) ? SUCCESS : NOT_SUPPORTED;
}

static result number_of(const device *d, const char *name, ull *value) {
    char text[64];
    result r = text_of(d, name, text, sizeof text);
    if (r == SUCCESS) *value = strtoull(text, NULL, 0);
    return r;
}

/* --- whether a function may answer at all ------------------------------------------------------------------------- */

static result ready(const char *function) {
    char key[160];
    pthread_mutex_lock(&lock);
    int open = references > 0;
    pthread_mutex_unlock(&lock);
    if (!open) return UNINITIALIZED;
    snprintf(key, sizeof key, "error.%s", function);
    return (result)number(key, number("error.*", SUCCESS));
}

static result ready_for(const device *d, const char *function) {
    char name[128], key[160];
    ull value = 0;
    result r = ready(function);
    if (r != SUCCESS) return r;
    if (!d) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "gpu%d.lost", d->gpu);
    if (number(key, 0)) lost[d->gpu] = 1;
    if (lost[d->gpu]) return GPU_IS_LOST;
    snprintf(name, sizeof name, "error.%s", function);
    if (number_of(d, name, &value) == SUCCESS || number_of(d, "error.*", &value) == SUCCESS) return (result)value;
    return SUCCESS;
}

static result copy_text(const char *value, char *target, uint size) {
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(target, value);
    return SUCCESS;
}

#define ANSWER_TEXT(FUNCTION, NAME)                                   \
    result FUNCTION(device *d, char *target, uint size) {             \
        char value[512];                                              \
        result r = ready_for(d, #FUNCTION);                           \
        if (r == SUCCESS) r = text_of(d, NAME, value, sizeof value);  \
        return r == SUCCESS ? copy_text(value, target, size) : r;     \
    }

#define ANSWER_NUMBER(FUNCTION, TYPE, NAME)                           \
    result FUNCTION(device *d, TYPE *target) {                        \
        ull value = 0;                                                \
        result r = ready_for(d, #FUNCTION);                           \
        if (r == SUCCESS) r = number_of(d, NAME, &value);             \
        if (r == SUCCESS) *target = (TYPE)value;                      \
        return r;                                                     \
    }

/* --- the system --------------------------------------------------------------------------------------------------- */

result nvmlInitWithFlags(uint flags) {
    (void)flags;
    result r = (result)number("error.nvmlInitWithFlags", SUCCESS);
    if (r != SUCCESS) return r;
    poll(NULL, 0, (int)number("init_ms", 0));
    pthread_mutex_lock(&lock);
    if (references++ == 0) {
        memset(lost, 0, sizeof lost);
        memset(watched, 0, sizeof watched);
        queued = 0;
    }
    initialisations++;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

result nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    result r = references > 0 ? SUCCESS : UNINITIALIZED;
    if (r == SUCCESS) references--;
    pthread_mutex_unlock(&lock);
    return r;
}

const char *nvmlErrorString(result r) { return r == UNKNOWN ? "Unknown Error" : "in the library's own words"; }

result nvmlSystemGetDriverVersion(char *target, uint size) {
    char value[512];
    result r = ready(__func__);
    if (r != SUCCESS) return r;
    return setting("driver_version", value, sizeof value) ? copy_text(value, target, size) : NOT_SUPPORTED;
}

result nvmlSystemGetCudaDriverVersion_v2(int *target) {
    result r = ready(__func__);
    if (r == SUCCESS) *target = (int)number("cuda_version", 0);
    return r == SUCCESS && *target == 0 ? NOT_SUPPORTED : r;
}

result nvmlDeviceGetCount_v2(uint *target) {
    result r = ready(__func__);
    if (r == SUCCESS) *target = (uint)number("count", 0);
    return r;
}

result nvmlDeviceGetHandleByIndex_v2(uint index, device **target) {
    result r = ready(__func__);
    if (r != SUCCESS) return r;
    if (index >= GPUS || index >= number("count", 0)) return INVALID_ARGUMENT;
    cards[index] = (device){(int)index, -1};
    r = ready_for(&cards[index], __func__);
    if (r == SUCCESS) *target = &cards[index];
    return r;
}

result nvmlDeviceGetIndex(device *d, uint *target) {
    result r = ready_for(d, __func__);
    if (r == SUCCESS) *target = (uint)d->gpu;
    return r;
}

/* --- one GPU, or one slice of it ---------------------------------------------------------------------------------- */

ANSWER_TEXT(nvmlDeviceGetName, "name")
ANSWER_TEXT(nvmlDeviceGetUUID, "uuid")
ANSWER_NUMBER(nvmlDeviceGetPowerUsage, uint, "power")
ANSWER_NUMBER(nvmlDeviceGetEnforcedPowerLimit, uint, "power_limit")
ANSWER_NUMBER(nvmlDeviceGetPowerManagementLimit, uint, "power_limit_set")
ANSWER_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, ull, "clock_reasons")
ANSWER_NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, uint, "pcie_generation")
ANSWER_NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, uint, "pcie_generation_max")
ANSWER_NUMBER(nvmlDeviceGetCurrPcieLinkWidth, uint, "pcie_width")
ANSWER_NUMBER(nvmlDeviceGetMaxPcieLinkWidth, uint, "pcie_width_max")
ANSWER_NUMBER(nvmlDeviceGetMaxMigDeviceCount, uint, "mig_max")
ANSWER_NUMBER(nvmlDeviceGetGpuInstanceId, uint, "gpu_instance")
ANSWER_NUMBER(nvmlDeviceGetComputeInstanceId, uint, "compute_instance")

result nvmlDeviceGetTemperature(device *d, uint sensor, uint *target) {
    ull value = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = sensor == 0 ? number_of(d, "temperature", &value) : INVALID_ARGUMENT;
    *target = (uint)value;
    return r;
}

result nvmlDeviceGetPciInfo_v3(device *d, pci_info *target) {
    char value[64];
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = text_of(d, "pci", value, sizeof value);
    if (r != SUCCESS) return r;
    memset(target, 0, sizeof *target);
    if (sscanf(value, "%x:%x:%x", &target->domain, &target->bus, &target->device) != 3) return UNKNOWN;
    snprintf(target->bus_id, sizeof target->bus_id, "%08X:%02X:%02X.0", target->domain, target->bus, target->device);
    return SUCCESS;
}

static result memory_of(const device *d, ull *total, ull *reserved, ull *free) {
    result r = number_of(d, "memory_total", total);
    if (r == SUCCESS) r = number_of(d, "memory_reserved", reserved);
    return r == SUCCESS ? number_of(d, "memory_free", free) : r;
}

result nvmlDeviceGetMemoryInfo(device *d, memory_v1 *target) {
    ull reserved;
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = memory_of(d, &target->total, &reserved, &target->free);
    if (r == SUCCESS) target->used = target->total - target->free;
    return r;
}

result nvmlDeviceGetUtilizationRates(device *d, utilization *target) {
    ull gpu = 0, memory = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = number_of(d, "utilization_gpu", &gpu);
    if (r == SUCCESS) r = number_of(d, "utilization_memory", &memory);
    *target = (utilization){(uint)gpu, (uint)memory};
    return r;
}

result nvmlDeviceGetClockInfo(device *d, uint type, uint *target) {
    ull value = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS && type != 1 && type != 2) r = INVALID_ARGUMENT; /* 1: streaming multiprocessors, 2: memory */
    if (r == SUCCESS) r = number_of(d, type == 1 ? "clock_sm" : "clock_memory", &value);
    *target = (uint)value;
    return r;
}

result nvmlDeviceGetEccMode(device *d, uint *current, uint *pending) {
    ull value = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = number_of(d, "ecc", &value);
    *current = *pending = (uint)value;
    return r;
}

result nvmlDeviceGetTotalEccErrors(device *d, uint kind, uint counter, ull *target) {
    result r = ready_for(d, __func__);
    if (r == SUCCESS && counter != 0) r = INVALID_ARGUMENT; /* only the volatile counter is known here */
    return r == SUCCESS ? number_of(d, kind == 0 ? "ecc_corrected" : "ecc_uncorrected", target) : r;
}

static result processes(device *d, const char *function, const char *name, uint *count, process *target) {
    char value[512];
    result r = ready_for(d, function);
    if (r == SUCCESS) r = text_of(d, name, value, sizeof value);
    if (r != SUCCESS) return r;
    uint room = *count, found = 0;
    for (char *rest = value, *entry; (entry = strsep(&rest, ",")) && *entry; found++) {
        if (found >= room) continue;
        char *bytes = strchr(entry, ':');
        ull used = bytes && bytes[1] != '?' ? strtoull(bytes + 1, NULL, 0) : ~0ULL; /* all bits set: not available */
        target[found] = (process){(uint)strtoul(entry, NULL, 10), used, ~0U, ~0U};
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define ANSWER_PROCESSES(FUNCTION, NAME) \
    result FUNCTION(device *d, uint *count, process *target) { return processes(d, #FUNCTION, NAME, count, target); }

ANSWER_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "processes_compute")

#ifndef OLD_LIBRARY
ANSWER_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "processes_compute")
ANSWER_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "processes_graphics")
ANSWER_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "processes_mps")
ANSWER_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, ull, "clock_reasons")

result nvmlDeviceGetTemperatureV(device *d, temperature_v1 *target) {
    ull value = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS && target->version != (sizeof *target | 1U << 24)) r = ARGUMENT_VERSION_MISMATCH;
    if (r == SUCCESS && target->sensor != 0) r = INVALID_ARGUMENT;
    if (r == SUCCESS) r = number_of(d, "temperature", &value);
    target->temperature = (int)value;
    return r;
}

result nvmlDeviceGetMemoryInfo_v2(device *d, memory_v2 *target) {
    result r = ready_for(d, __func__);
    if (r == SUCCESS && target->version != (sizeof *target | 2U << 24)) r = ARGUMENT_VERSION_MISMATCH;
    if (r == SUCCESS) r = memory_of(d, &target->total, &target->reserved, &target->free);
    if (r == SUCCESS) target->used = target->total - target->reserved - target->free;
    return r;
}

result nvmlDeviceGetMigMode(device *d, uint *current, uint *pending) {
    ull value = 0;
    result r = ready_for(d, __func__);
    if (r == SUCCESS) r = number_of(d, "mig", &value);
    *current = *pending = (uint)value;
    return r;
}

result nvmlDeviceGetMigDeviceHandleByIndex(device *d, uint index, device **target) {
    char uuid[96];
    result r = ready_for(d, __func__);
    if (r != SUCCESS) return r;
    if (index >= SLICES) return INVALID_ARGUMENT;
    static device slices[GPUS][SLICES];
    device *slice = &slices[d->gpu][index];
    *slice = (device){d->gpu, (int)index};
    if (text_of(slice, "uuid", uuid, sizeof uuid) != SUCCESS) return NOT_FOUND;
    *target = slice;
    return SUCCESS;
}
#endif

/* --- events ------------------------------------------------------------------------------------------------------- */

result nvmlEventSetCreate(void **target) {
    result r = ready(__func__);
    if (r == SUCCESS) {
        *target = queue;
        event_sets++;
    }
    return r;
}

result nvmlEventSetFree(void *set) {
    result r = ready(__func__);
    if (r == SUCCESS && set != queue) r = INVALID_ARGUMENT;
    if (r == SUCCESS) {
        memset(watched, 0, sizeof watched);
        event_sets--;
    }
    return r;
}

result nvmlDeviceRegisterEvents(device *d, ull types, void *set) {
    result r = ready_for(d, __func__);
    if (r == SUCCESS && set != queue) r = INVALID_ARGUMENT;
    if (r == SUCCESS) watched[d->gpu] |= types;
    return r;
}

result nvmlEventSetWait_v2(void *set, event *target, uint milliseconds) {
    (void)milliseconds; /* nothing can come while the caller waits: errors are raised between the calls */
    result r = ready(__func__);
    if (r != SUCCESS || set != queue) return r != SUCCESS ? r : INVALID_ARGUMENT;
    for (int gpu = 0; gpu < GPUS; gpu++) {
        ull xid = 0;
        if (number_of(&(device){gpu, -1}, "xid", &xid) != SUCCESS || xid == xid_told[gpu]) continue;
        if (fake_raise_xid(gpu, xid, 0)) xid_told[gpu] = xid;
    }
    pthread_mutex_lock(&lock);
    if (queued > 0) {
        *target = queue[0];
        memmove(queue, queue + 1, (size_t)--queued * sizeof *queue);
    } else {
        r = TIMEOUT;
    }
    pthread_mutex_unlock(&lock);
    return r;
}

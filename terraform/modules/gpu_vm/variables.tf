variable "name" {
  description = "Host name."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.name))
    error_message = "The name ${var.name} is not a host name: small letters, digits and -, 63 at most."
  }
}

variable "node" {
  description = "Proxmox node that has the GPUs."
  type        = string
}

variable "vm_id" {
  description = "Proxmox' number; null takes the next free one."
  type        = number
  default     = null
}

variable "gpus" {
  description = "Names of PCI mappings."
  type        = list(string)

  validation {
    condition     = length(var.gpus) >= 1 && length(var.gpus) <= 4 && length(distinct(var.gpus)) == length(var.gpus)
    error_message = "A GPU machine takes one to four different PCI mappings."
  }
}

variable "present_mappings" {
  description = "PCI mappings that the node can use."
  type        = set(string)
}

variable "mapping_complaints" {
  description = "What Proxmox says against other mappings, by name."
  type        = map(string)
  default     = {}
}

variable "cores" {
  description = "Virtual processors, all of the host's own type."
  type        = number

  validation {
    condition     = var.cores >= 2 && var.cores <= 128 && floor(var.cores) == var.cores
    error_message = "cores is a whole number from 2 to 128: one decodes audio while another feeds the GPU."
  }
}

variable "memory_mib" {
  description = "Memory in MiB, all of it locked: a passed device may write anywhere in it."
  type        = number

  validation {
    condition     = var.memory_mib >= 4096 && floor(var.memory_mib) == var.memory_mib
    error_message = "memory_mib is at least 4096: loading a model takes its size in memory before it is on the GPU."
  }
}

variable "disk_gib" {
  description = "Size of the disk in GiB."
  type        = number

  validation {
    condition     = var.disk_gib >= 24 && floor(var.disk_gib) == var.disk_gib
    error_message = "disk_gib is at least 24: driver, libraries and one large model take about 15."
  }
}

variable "datastore" {
  description = "Storage for the disks."
  type        = string
}

variable "image" {
  description = "Volume of the cloud image, such as local:import/debian-12.qcow2."
  type        = string
}

variable "bridge" {
  description = "Network bridge of the node."
  type        = string
}

variable "vlan" {
  description = "VLAN tag, or null."
  type        = number
  default     = null

  validation {
    condition     = var.vlan == null || try(var.vlan >= 1 && var.vlan <= 4094, false)
    error_message = "vlan is a number from 1 to 4094, or null."
  }
}

variable "address" {
  description = "IPv4 address with prefix, or dhcp."
  type        = string

  validation {
    condition     = var.address == "dhcp" || (can(cidrhost(var.address, 0)) && can(regex("^[0-9.]+/[0-9]+$", var.address)))
    error_message = "address is neither dhcp nor an IPv4 address with its prefix, such as 192.168.20.30/24."
  }
}

variable "gateway" {
  description = "IPv4 gateway of a static address."
  type        = string
  default     = null

  validation {
    condition     = (var.address == "dhcp") == (var.gateway == null)
    error_message = "A static address needs a gateway, and dhcp brings its own."
  }
}

variable "username" {
  description = "User that cloud-init makes."
  type        = string
}

variable "ssh_keys" {
  description = "Public keys of that user."
  type        = list(string)
}

variable "vendor_data" {
  description = "Snippet for cloud-init, or null."
  type        = string
  default     = null
}

variable "agent" {
  description = "Whether the guest agent runs in the machine."
  type        = bool
}

variable "protected" {
  description = "Whether Proxmox refuses to destroy the machine."
  type        = bool
}

variable "start_timeout_seconds" {
  description = "How long a start may take."
  type        = number
  default     = 900
}

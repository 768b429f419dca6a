variable "machines" {
  description = <<-EOT
    Virtual machines by name. Each gets one PCI mapping per GPU; one GPU serves one machine.

      node        Proxmox node that has the GPU
      gpus        names of PCI mappings, at most four
      address     IPv4 with prefix (192.168.20.30/24), or dhcp
      gateway     for a static address
      vlan        tag; null for none
      vm_id       null takes the next free one
      cores, memory_mib, disk_gib
      datastore   where disks live
      bridge
      protected   Proxmox refuses to destroy the machine until this is false
      start_timeout_seconds   all memory is locked at the start, which takes a minute for each 64 GiB or so
  EOT
  type = map(object({
    node       = string
    gpus       = optional(list(string), ["gpu"])
    address    = optional(string, "dhcp")
    gateway    = optional(string)
    vlan       = optional(number)
    vm_id      = optional(number)
    cores      = optional(number, 4)
    memory_mib = optional(number, 16384)
    disk_gib   = optional(number, 64)
    datastore  = optional(string, "local-lvm")
    bridge     = optional(string, "vmbr0")
    protected  = optional(bool, false)

    start_timeout_seconds = optional(number, 900)
  }))

  validation {
    condition     = length(var.machines) > 0
    error_message = "machines is empty: name at least one, as in terraform.tfvars.example."
  }

  validation {
    condition = length(flatten([for machine in var.machines : [for gpu in machine.gpus : "${machine.node}/${gpu}"]])) == length(
      distinct(flatten([for machine in var.machines : [for gpu in machine.gpus : "${machine.node}/${gpu}"]]))
    )
    error_message = "Two machines of one node ask for the same PCI mapping. A GPU can be in one running machine only: give each its own mapping."
  }
}

variable "mappings" {
  description = <<-EOT
    PCI mappings that Terraform makes, by name; leave it empty where `proxmox_host.py` has made them. Values are those of
    `lspci -nns ADDRESS` and of /sys/bus/pci/devices/ADDRESS/iommu_group; a path without function passes the whole card.
  EOT
  type = map(list(object({
    node         = string
    path         = string
    id           = string
    subsystem_id = string
    iommu_group  = number
  })))
  default = {}

  validation {
    condition = alltrue([
      for device in flatten(values(var.mappings)) : can(regex("^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}(\\.[0-7])?$", device.path))
    ])
    error_message = "A mapping's path is not a PCI address such as 0000:03:00 or 0000:03:00.0, in small letters."
  }

  validation {
    condition = alltrue([
      for device in flatten(values(var.mappings)) :
      can(regex("^[0-9a-f]{4}:[0-9a-f]{4}$", device.id)) && can(regex("^[0-9a-f]{4}:[0-9a-f]{4}$", device.subsystem_id))
    ])
    error_message = "A mapping's id or subsystem_id is not of the form 10de:13f1, in small letters."
  }
}

variable "image" {
  description = "Cloud image for all machines: qcow2 with cloud-init. The node downloads it once and checks it."
  type = object({
    url       = string
    checksum  = string
    algorithm = optional(string, "sha512")
    file_name = optional(string)
    datastore = optional(string, "local")
  })

  validation {
    condition = can(regex("^[0-9a-f]+$", var.image.checksum)) && length(var.image.checksum) == lookup(
      { sha256 = 64, sha384 = 96, sha512 = 128 }, var.image.algorithm, -1
    )
    error_message = "image.checksum is not the hexadecimal SHA-256, SHA-384 or SHA-512 that image.algorithm says."
  }

  validation {
    condition     = can(regex("^https://", var.image.url)) || can(regex("^http://", var.image.url))
    error_message = "image.url is not an HTTP address that the node can reach."
  }
}

variable "ssh_keys" {
  description = "Public keys that may log in as `username`; the machines have no password."
  type        = list(string)

  validation {
    condition = length(var.ssh_keys) > 0 && alltrue([
      for key in var.ssh_keys : can(regex("^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh.com) [A-Za-z0-9+/=]+", key))
    ])
    error_message = "ssh_keys needs at least one public key, as in ~/.ssh/id_ed25519.pub. (A private key has no place here.)"
  }
}

variable "username" {
  description = "The machines' user, who may use sudo. Not metalscribe: the service runs as that, without a shell."
  type        = string
  default     = "debian"

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]{0,31}$", var.username))
    error_message = "username is not a plain user name: small letters, digits, - and _, a letter first."
  }

  validation {
    condition = !contains(
      # Users and groups that a Debian or Ubuntu has from the start: cloud-init makes no user of that name, and nobody could log in.
      split(" ", join(" ", [
        "root daemon bin sys adm tty disk lp mail news uucp man proxy kmem dialout fax voice cdrom floppy tape sudo audio dip",
        "www-data backup operator list irc src shadow utmp video sasl plugdev staff games users nobody nogroup sync sshd",
        "messagebus input kvm render netdev metalscribe",
      ])),
      var.username
    )
    error_message = "username ${var.username} is a user or a group that the system or the service has already: choose another, such as debian."
  }
}

variable "vendor_data" {
  description = <<-EOT
    Snippet on the nodes that cloud-init reads besides user and keys; it installs the guest agent, which tells Terraform the
    addresses. `proxmox_host.py` puts it there. null where the image has the agent already.
  EOT
  type        = string
  default     = "local:snippets/metalscribe.yaml"
}

variable "agent" {
  description = "Wait for the guest agent. Without it addresses must be static."
  type        = bool
  default     = true

  validation {
    condition     = var.agent || alltrue([for machine in var.machines : machine.address != "dhcp"])
    error_message = "Without the guest agent nobody can tell the address of a machine that uses dhcp: set address, or agent = true."
  }
}

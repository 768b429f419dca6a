# A virtual machine that has a GPU to itself. What is set against the provider's or Proxmox' defaults says why.
resource "proxmox_virtual_environment_vm" "this" {
  name      = var.name
  node_name = var.node
  vm_id     = var.vm_id
  tags      = ["gpu", "metalscribe"] # sorted, as Proxmox stores them

  machine = "q35"  # PCI Express, which the GPU's driver expects
  bios    = "ovmf" # large BARs are mapped by UEFI alone

  efi_disk {
    datastore_id      = var.datastore
    type              = "4m"
    pre_enrolled_keys = false # with Microsoft's keys Secure Boot refuses the driver's unsigned modules
  }

  cpu {
    type  = "host" # AVX2 and later, which CTranslate2 uses
    cores = var.cores
  }

  memory {
    dedicated = var.memory_mib
    floating  = 0 # no ballooning: the device may write to every page
  }

  dynamic "hostpci" {
    for_each = var.gpus
    content {
      device  = "hostpci${hostpci.key}"
      mapping = hostpci.value # by mapping, since a token may not name addresses
      pcie    = true
      rombar  = true
      xvga    = false # the console stays readable in Proxmox
    }
  }

  scsi_hardware = "virtio-scsi-single"
  boot_order    = ["scsi0"]

  disk {
    interface    = "scsi0"
    datastore_id = var.datastore
    import_from  = var.image
    size         = var.disk_gib
    iothread     = true
    discard      = "on"
  }

  network_device {
    bridge  = var.bridge
    vlan_id = var.vlan
  }

  serial_device {} # journalctl of a machine that has no network: `qm terminal`

  operating_system {
    type = "l26"
  }

  agent {
    enabled = var.agent
    timeout = "10m" # a first boot installs the agent
  }

  initialization {
    datastore_id        = var.datastore
    vendor_data_file_id = var.vendor_data

    ip_config {
      ipv4 {
        address = var.address
        gateway = var.gateway
      }
    }

    user_account {
      username = var.username
      keys     = [for key in var.ssh_keys : trimspace(key)]
    }
  }

  on_boot          = true
  protection       = var.protected
  timeout_create   = 1800
  timeout_start_vm = var.start_timeout_seconds # locking much memory takes minutes
  stop_on_destroy  = true

  lifecycle {
    precondition {
      condition = alltrue([for gpu in var.gpus : contains(var.present_mappings, gpu)])
      error_message = <<-EOT
        Node ${var.node} cannot use the PCI mapping ${join(", ", [
      for gpu in var.gpus : "${gpu} (${lookup(var.mapping_complaints, gpu, "there is none of that name")})"
      if !contains(var.present_mappings, gpu)
])}. It can use: ${join(", ", length(var.present_mappings) > 0 ? var.present_mappings : ["none"])}.
        Run provision/proxmox_host.py on the node, or name the device in `mappings`.
      EOT
}
}
}

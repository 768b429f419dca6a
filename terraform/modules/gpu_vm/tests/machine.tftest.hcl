# A machine as it would be made, and the ways to ask for one that would not work.

mock_provider "proxmox" {}

variables {
  name             = "whisper-gpu"
  node             = "pve1"
  gpus             = ["gpu"]
  present_mappings = ["gpu", "second"]
  cores            = 4
  memory_mib       = 16384
  disk_gib         = 64
  datastore        = "local-lvm"
  image            = "local:import/debian-12.qcow2"
  bridge           = "vmbr0"
  address          = "192.168.20.30/24"
  gateway          = "192.168.20.1"
  username         = "debian"
  ssh_keys         = ["ssh-ed25519 AAAA operator@laptop\n"]
  vendor_data      = "local:snippets/metalscribe.yaml"
  agent            = true
  protected        = false
}

run "is_made_for_passthrough" {
  command = plan

  assert {
    condition = (
      proxmox_virtual_environment_vm.this.machine == "q35" &&
      proxmox_virtual_environment_vm.this.bios == "ovmf" &&
      proxmox_virtual_environment_vm.this.cpu[0].type == "host" &&
      proxmox_virtual_environment_vm.this.efi_disk[0].type == "4m" &&
      !proxmox_virtual_environment_vm.this.efi_disk[0].pre_enrolled_keys
    )
    error_message = "Not the hardware that a passed GPU needs."
  }

  assert {
    condition     = proxmox_virtual_environment_vm.this.memory[0].floating == 0
    error_message = "Ballooning is on."
  }

  assert {
    condition = (
      proxmox_virtual_environment_vm.this.hostpci[0].mapping == "gpu" &&
      proxmox_virtual_environment_vm.this.hostpci[0].pcie &&
      !proxmox_virtual_environment_vm.this.hostpci[0].xvga
    )
    error_message = "The GPU is not passed by its mapping."
  }

  assert {
    condition     = proxmox_virtual_environment_vm.this.initialization[0].user_account[0].keys[0] == "ssh-ed25519 AAAA operator@laptop"
    error_message = "The key is not the one given."
  }

  assert {
    condition     = proxmox_virtual_environment_vm.this.initialization[0].user_account[0].password == null
    error_message = "There is a password."
  }

  assert {
    condition     = output.address == "192.168.20.30"
    error_message = "The address is not the one given."
  }
}

run "takes_several_gpus" {
  command = plan
  variables {
    gpus = ["gpu", "second"]
  }

  assert {
    condition = [for card in proxmox_virtual_environment_vm.this.hostpci : "${card.device}=${card.mapping}"] == [
      "hostpci0=gpu", "hostpci1=second",
    ]
    error_message = "Not both."
  }
}

run "a_mapping_that_the_node_lacks" {
  command = plan
  variables {
    gpus               = ["elsewhere"]
    mapping_complaints = { elsewhere = "No mapping for node pve1" }
  }
  expect_failures = [proxmox_virtual_environment_vm.this]
}

run "no_gpu" {
  command = plan
  variables {
    gpus = []
  }
  expect_failures = [var.gpus]
}

run "the_same_gpu_twice" {
  command = plan
  variables {
    gpus = ["gpu", "gpu"]
  }
  expect_failures = [var.gpus]
}

run "little_memory" {
  command = plan
  variables {
    memory_mib = 2048
  }
  expect_failures = [var.memory_mib]
}

run "a_small_disk" {
  command = plan
  variables {
    disk_gib = 8
  }
  expect_failures = [var.disk_gib]
}

run "one_core" {
  command = plan
  variables {
    cores = 1
  }
  expect_failures = [var.cores]
}

run "an_address_without_a_prefix" {
  command = plan
  variables {
    address = "192.168.20.30"
  }
  expect_failures = [var.address]
}

run "a_static_address_without_a_gateway" {
  command = plan
  variables {
    gateway = null
  }
  expect_failures = [var.gateway]
}

run "a_name_that_is_none" {
  command = plan
  variables {
    name = "Whisper_GPU"
  }
  expect_failures = [var.name]
}

run "a_vlan_that_is_none" {
  command = plan
  variables {
    vlan = 5000
  }
  expect_failures = [var.vlan]
}

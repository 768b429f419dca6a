# What is refused before anything is asked of Proxmox, and in which words.

mock_provider "proxmox" {
  mock_data "proxmox_hardware_mappings" {
    defaults = {
      ids = ["gpu"]
    }
  }
}

variables {
  ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHlQf3h0bWx0c2NyaWJlLXRlc3Qta2V5LW5vdC1yZWFs operator@laptop"]
  image    = { url = "https://images.example/debian-12.qcow2", checksum = "" }
  machines = { whisper = { node = "pve1", address = "192.168.20.30/24", gateway = "192.168.20.1" } }
}

run "an_image_without_a_checksum" {
  command         = plan
  expect_failures = [var.image]
}

run "a_checksum_of_another_length" {
  command = plan
  variables {
    image = { url = "https://images.example/debian-12.qcow2", checksum = "00ff", algorithm = "sha256" }
  }
  expect_failures = [var.image]
}

run "an_image_from_a_file" {
  command = plan
  variables {
    image = { url = "file:///root/debian.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
  }
  expect_failures = [var.image]
}

run "no_machines" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    machines = {}
  }
  expect_failures = [var.machines]
}

run "two_machines_with_one_gpu" {
  command = plan
  variables {
    image = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    machines = {
      one = { node = "pve1" }
      two = { node = "pve1" }
    }
  }
  expect_failures = [var.machines]
}

run "a_private_key" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    ssh_keys = ["-----BEGIN OPENSSH PRIVATE KEY-----"]
  }
  expect_failures = [var.ssh_keys]
}

run "root" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    username = "root"
  }
  expect_failures = [var.username]
}

run "a_group_of_the_system" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    username = "operator"
  }
  expect_failures = [var.username]
}

run "the_services_own_user" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    username = "metalscribe"
  }
  expect_failures = [var.username]
}

run "dhcp_without_an_agent" {
  command = plan
  variables {
    image    = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    machines = { whisper = { node = "pve1" } }
    agent    = false
  }
  expect_failures = [var.agent]
}

run "a_mapping_with_a_wrong_address" {
  command = plan
  variables {
    image = { url = "https://images.example/d.qcow2", checksum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", algorithm = "sha256" }
    mappings = {
      gpu = [{ node = "pve1", path = "03:00.0", id = "10de:13f1", subsystem_id = "10de:1153", iommu_group = 52 }]
    }
  }
  expect_failures = [var.mappings]
}

terraform {
  required_version = ">= 1.9"

  required_providers {
    proxmox = {
      source  = "bpg/proxmox"
      version = ">= 0.111.1, < 1.0.0"
    }
  }
}

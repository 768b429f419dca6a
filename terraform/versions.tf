terraform {
  required_version = ">= 1.9" # a validation may look at other variables

  required_providers {
    proxmox = {
      source  = "bpg/proxmox"
      version = "0.111.1"
    }
  }
}

# Endpoint and token come from the environment, where `. ./.env` puts them: that file is written by
# `pyinfra … provision/proxmox_host.py`, and no secret enters a variable, a plan or the state.
provider "proxmox" {}

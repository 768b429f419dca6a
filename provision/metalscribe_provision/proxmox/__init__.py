"""A Proxmox cluster's resource mapping for the passed devices, and the API token that Terraform works with."""

locals {
  # The agent names all interfaces; the first address of the first that is not the loopback is the machine's.
  reported = [
    for number, interface in proxmox_virtual_environment_vm.this.network_interface_names :
    proxmox_virtual_environment_vm.this.ipv4_addresses[number] if interface != "lo"
  ]
}

output "address" {
  description = "IPv4 address."
  value       = var.address == "dhcp" ? try(flatten(local.reported)[0], null) : split("/", var.address)[0]

  precondition {
    condition     = var.address != "dhcp" || length(flatten(local.reported)) > 0
    error_message = "The guest agent of ${var.name} reports no IPv4 address: does the bridge have a DHCP server, and is the agent installed (vendor_data)?"
  }
}

output "vm_id" {
  description = "Proxmox' number."
  value       = proxmox_virtual_environment_vm.this.vm_id
}

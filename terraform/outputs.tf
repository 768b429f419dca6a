output "addresses" {
  description = "IPv4 address of each machine."
  value       = { for name, machine in module.gpu_vm : name => machine.address }
}

output "vm_ids" {
  description = "Proxmox' number of each machine."
  value       = { for name, machine in module.gpu_vm : name => machine.vm_id }
}

output "ansible_inventory" {
  description = "Inventory for pyinfra and Ansible alike: `terraform output -raw ansible_inventory > machines.ini`."
  value = join("\n", concat(
    ["[gpu_vms]"],
    [
      for name, machine in module.gpu_vm :
      "${name} ansible_host=${machine.address} ansible_user=${var.username} ansible_become=true"
    ],
    ["", "[gpu_hosts:children]", "gpu_vms", ""],
  ))
}

output "pyinfra_inventory" {
  description = "The same for `pyinfra @terraform provision/gpu_host.py`, run in this directory."
  value = {
    gpu_hosts = [
      for name, machine in module.gpu_vm :
      { name = name, ssh_hostname = machine.address, ssh_user = var.username, _sudo = true }
    ]
  }
}

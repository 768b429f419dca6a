# Mappings that are to exist are Terraform's or the host deploy's; machines take both kinds by name.
resource "proxmox_hardware_mapping_pci" "this" {
  for_each = var.mappings

  name    = each.key
  comment = "metalscribe"
  map     = each.value
}

data "proxmox_hardware_mappings" "present" {
  for_each = local.nodes

  type       = "pci"
  check_node = each.key
}

locals {
  nodes = toset([for machine in var.machines : machine.node])

  # A mapping that Proxmox has something against (no entry for the node, other hardware than it says) is none.
  usable = {
    for node, found in data.proxmox_hardware_mappings.present :
    node => setunion(
      setsubtract(found.ids, [for check in coalesce(found.checks, []) : check.mapping_id]),
      [for mapping in proxmox_hardware_mapping_pci.this : mapping.name],
    )
  }
  complaints = {
    for node, found in data.proxmox_hardware_mappings.present :
    node => { for check in coalesce(found.checks, []) : check.mapping_id => check.message... }
  }
}

# Once per node, however many machines it has. No look at the address on every plan: the checksum says what the image is.
resource "proxmox_download_file" "image" {
  for_each = local.nodes

  node_name          = each.key
  datastore_id       = var.image.datastore
  content_type       = "import"
  url                = var.image.url
  file_name          = coalesce(var.image.file_name, basename(var.image.url))
  checksum           = var.image.checksum
  checksum_algorithm = var.image.algorithm
  overwrite          = false
  upload_timeout     = 1800
}

module "gpu_vm" {
  source   = "./modules/gpu_vm"
  for_each = var.machines

  name        = each.key
  node        = each.value.node
  vm_id       = each.value.vm_id
  gpus        = each.value.gpus
  cores       = each.value.cores
  memory_mib  = each.value.memory_mib
  disk_gib    = each.value.disk_gib
  datastore   = each.value.datastore
  image       = proxmox_download_file.image[each.value.node].id
  bridge      = each.value.bridge
  vlan        = each.value.vlan
  address     = each.value.address
  gateway     = each.value.gateway
  username    = var.username
  ssh_keys    = var.ssh_keys
  vendor_data = var.vendor_data
  agent       = var.agent
  protected   = each.value.protected

  start_timeout_seconds = each.value.start_timeout_seconds

  present_mappings   = local.usable[each.value.node]
  mapping_complaints = { for name, messages in local.complaints[each.value.node] : name => join("; ", messages) }
}

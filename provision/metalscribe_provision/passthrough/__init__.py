"""A PCI device of a Proxmox host, handed to its virtual machines: IOMMU, vfio-pci, isolation, and the way back."""

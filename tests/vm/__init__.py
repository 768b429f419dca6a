"""Virtual machines with a kernel, a boot loader and an IOMMU of their own, on a machine that cannot virtualise (QEMU's TCG).

Needs root: ``make vmlab``. Nothing of what a deploy does to a host is simulated here, but for what the modules say.
"""

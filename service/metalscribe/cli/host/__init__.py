"""What ``metalscribe doctor`` looks at on a host that the deploy of ``provision/`` made, and nowhere else."""

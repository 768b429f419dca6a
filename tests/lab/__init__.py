"""Real hosts on one machine: systemd containers in namespaces of their own, deployed to over SSH. Needs root: ``make lab``."""

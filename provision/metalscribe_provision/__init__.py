"""Deploys metalscribe to hosts: what provision/site.py is made of."""

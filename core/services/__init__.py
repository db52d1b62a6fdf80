"""The services of the service port, a file each; host.py has what they stand on, core/service.py composes them."""

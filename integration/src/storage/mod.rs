//! A stand-in for EBS: a control plane that lets a volume be attached to one host at a time, and a Docker volume plugin.

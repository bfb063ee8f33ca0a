//! A cluster of hosts on one machine: namespaces, etcd, a Mesos master and agents; started, and taken down again.

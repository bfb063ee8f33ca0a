// The Mesos release whose public headers these declarations restate.

#ifndef __MESOS_VERSION_HPP__
#define __MESOS_VERSION_HPP__

#define MESOS_VERSION "1.11.0"

// Not in the official header. The declarations of this folder hold for every
// release that the glue was tried on; those of an installed Mesos only for the
// release they came with.
#define EXTVOL_OWN_MESOS_DECLARATIONS 1

#endif // __MESOS_VERSION_HPP__

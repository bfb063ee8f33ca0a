// libprocess's entry points, as far as the glue needs them.

#ifndef __PROCESS_PROCESS_HPP__
#define __PROCESS_PROCESS_HPP__

#include <process/address.hpp>

namespace process {

// Exported by libmesos. It first calls `process::initialize()`, which returns
// at once when libprocess is up; the mains of the master and of the agent
// bring it up before they load a module.
network::inet::Address address();

} // namespace process {

#endif // __PROCESS_PROCESS_HPP__

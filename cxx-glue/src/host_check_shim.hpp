// Does the Mesos that loads this library look as the glue believes?
//
// The glue is compiled without Mesos's headers, so a difference would not be a
// compile error but a corrupted agent. Everything that the glue rests on and
// that can be seen at load is looked at, once, before the first call.

#ifndef EXTVOL_HOST_CHECK_SHIM_HPP
#define EXTVOL_HOST_CHECK_SHIM_HPP

#include <cstddef>
#include <optional>
#include <string>

#include "host_expectations_shim.hpp"

namespace extvol {

// What is measured on the host because it cannot be known beforehand.
struct HostLayout
{
  // The distance of two states in a std::vector<ContainerState>.
  std::size_t containerStateSize = 0;

  // The first word of every object of these classes: what tells that a walk
  // over Mesos's containers really stands on an object.
  const void* containerStateTable = nullptr;
  const void* containerIdTable = nullptr;
};


// The release of the running Mesos, "" when it does not tell.
std::string hostMesosVersion();

// The version for the manifests: the host's, if this library was tried on it.
const char* claimedMesosVersion(const HostExpectations& expected);

// The sentences to refuse loading with, "expected ..., found ...". They may be
// called on any thread, before and after libprocess is up.
std::optional<std::string> refuseMaster(const HostExpectations& expected);
std::optional<std::string> refuseAgent(
    const HostExpectations& expected,
    HostLayout* layout);

} // namespace extvol {

#endif // EXTVOL_HOST_CHECK_SHIM_HPP

#include "host_expectations_shim.hpp"

#include <mesos/version.hpp>

#include <mesos/slave/isolator.hpp>

namespace extvol {

const HostExpectations& hostExpectations()
{
  // Never destroyed: Mesos's threads may still call when the process exits.
  static const HostExpectations& expectations = *new HostExpectations{
#ifdef EXTVOL_OWN_MESOS_DECLARATIONS
    {"1.8.1", "1.9.0", "1.10.0", "1.11.0"},
#else
    {MESOS_VERSION},
#endif
    MESOS_VERSION,
    4,
    8,
    9,
    10,
    0,
    1,
    2,
    8,
    {"supportsNesting",
     "supportsStandalone",
     "recover",
     "prepare",
     "isolate",
     "watch",
     "update",
     "usage",
     "status",
     "cleanup"},
    sizeof(mesos::slave::ContainerLaunchInfo),
    sizeof(mesos::slave::ContainerLimitation),
    sizeof(mesos::ResourceStatistics),
    sizeof(mesos::ContainerStatus)};
  return expectations;
}

} // namespace extvol {

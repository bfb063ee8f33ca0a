// The messages of slave/containerizer.proto that an isolator meets. See
// <mesos/mesos.hpp> for what the sizes mean.

#ifndef __MESOS_SLAVE_CONTAINERIZER_HPP__
#define __MESOS_SLAVE_CONTAINERIZER_HPP__

#include <mesos/mesos.hpp>

namespace mesos {
namespace slave {

MESOS_DECLARE_MESSAGE(ContainerConfig, 1024);
MESOS_DECLARE_MESSAGE(ContainerLaunchInfo, 1024);
MESOS_DECLARE_MESSAGE(ContainerLimitation, 512);
MESOS_DECLARE_MESSAGE(ContainerState, 512);

} // namespace slave {
} // namespace mesos {

#endif // __MESOS_SLAVE_CONTAINERIZER_HPP__

// The isolator interface. The *order* of the virtual functions is the ABI; it
// is the same from Mesos 1.7 on. `update` has its third argument since 1.10:
// an older host does not pass it, which is harmless while nobody reads it.

#ifndef __MESOS_SLAVE_ISOLATOR_HPP__
#define __MESOS_SLAVE_ISOLATOR_HPP__

#include <sys/types.h>

#include <string>
#include <vector>

#include <mesos/resources.hpp>

#include <mesos/slave/containerizer.hpp>

#include <process/future.hpp>

#include <stout/hashset.hpp>
#include <stout/nothing.hpp>
#include <stout/option.hpp>

// As <mesos/type_utils.hpp> has it, where the body is. The set of orphans is
// only walked over, never searched, so nothing ever calls it.
namespace std {

template <>
struct hash<mesos::ContainerID>
{
  size_t operator()(const mesos::ContainerID& containerId) const;
};

} // namespace std {

namespace mesos {
namespace slave {

class Isolator
{
public:
  virtual ~Isolator() {}

  virtual bool supportsNesting() = 0;

  virtual bool supportsStandalone() = 0;

  virtual process::Future<Nothing> recover(
      const std::vector<ContainerState>& states,
      const hashset<ContainerID>& orphans) = 0;

  virtual process::Future<Option<ContainerLaunchInfo>> prepare(
      const ContainerID& containerId,
      const ContainerConfig& containerConfig) = 0;

  virtual process::Future<Nothing> isolate(
      const ContainerID& containerId,
      pid_t pid) = 0;

  virtual process::Future<ContainerLimitation> watch(
      const ContainerID& containerId) = 0;

  virtual process::Future<Nothing> update(
      const ContainerID& containerId,
      const Resources& resourceRequests,
      const google::protobuf::Map<std::string, Value::Scalar>&
        resourceLimits) = 0;

  virtual process::Future<ResourceStatistics> usage(
      const ContainerID& containerId) = 0;

  virtual process::Future<ContainerStatus> status(
      const ContainerID& containerId) = 0;

  virtual process::Future<Nothing> cleanup(
      const ContainerID& containerId) = 0;
};

} // namespace slave {
} // namespace mesos {

#endif // __MESOS_SLAVE_ISOLATOR_HPP__

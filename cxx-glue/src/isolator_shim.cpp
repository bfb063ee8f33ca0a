#include "isolator_shim.hpp"

#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <time.h>

#include <mesos/slave/isolator.hpp>

#include <process/future.hpp>

#include "completion_shim.hpp"
#include "convert_shim.hpp"
#include "cxx-glue/src/bridge.rs.h"

using mesos::ContainerID;
using mesos::ContainerStatus;
using mesos::Resources;
using mesos::ResourceStatistics;
using mesos::Value;
using mesos::slave::ContainerConfig;
using mesos::slave::ContainerLaunchInfo;
using mesos::slave::ContainerLimitation;
using mesos::slave::ContainerState;

using process::Future;

using std::string;
using std::unique_ptr;
using std::vector;

namespace extvol {

namespace {

// What is being thrown; only for a handler.
string thrown() noexcept
{
  try {
    throw;
  } catch (const std::exception& e) {
    return string("extvol: ") + e.what();
  } catch (...) {
    return "extvol: an unknown exception";
  }
}


// The translator: gives `call` a completion and Mesos its future. Whatever is
// thrown on the way fails the future. `noexcept` leaves one way to die: no
// memory even for the future, where Mesos itself would give up too.
//
// Drop order: the future is taken before the completion is handed over, since
// Rust may complete and free it before `call` returns. It keeps the shared
// state alive by itself.
template <typename C, typename F>
auto answerLater(F&& call) noexcept -> decltype(std::declval<C>().future())
{
  unique_ptr<C> completion(new C());
  auto future = completion->future();
  try {
    call(completion);
  } catch (...) {
    const string sentence = thrown();
    if (completion != nullptr) {
      completion->fail(sentence);
    }
  }
  return future;
}


// The same for an answer that C++ has at once. Nobody has the future yet, so no
// callback of Mesos's runs inside.
template <typename T, typename F>
Future<T> answerNow(F&& make) noexcept
{
  process::Promise<T> promise;
  try {
    promise.set(make());
  } catch (...) {
    promise.fail(thrown());
  }
  return promise.future();
}


double now()
{
  struct timespec time = {};
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(time.tv_sec) +
    static_cast<double>(time.tv_nsec) / 1e9;
}


class VolumeIsolator : public mesos::slave::Isolator
{
public:
  VolumeIsolator(rust::Box<IsolatorHandle> _rust, const HostLayout& _layout)
    : rust(std::move(_rust)), layout(_layout) {}

  // Drop order: Mesos deletes its isolators after the containerizer's actor has
  // ended, so the futures that Rust completes while it is dropped find nobody.
  ~VolumeIsolator() override = default;

  bool supportsNesting() override { return true; }

  bool supportsStandalone() override { return true; }

  Future<Nothing> recover(
      const vector<ContainerState>& states,
      const hashset<ContainerID>& orphans) override
  {
    return answerLater<NothingCompletion>(
        [&](unique_ptr<NothingCompletion>& completion) {
          recover(states, orphans, completion);
        });
  }

  Future<Option<ContainerLaunchInfo>> prepare(
      const ContainerID& containerId,
      const ContainerConfig& containerConfig) override
  {
    return answerLater<LaunchCompletion>(
        [&](unique_ptr<LaunchCompletion>& completion) {
          const string id = containerId.SerializeAsString();
          const string config = containerConfig.SerializeAsString();
          rust->prepare(asSlice(id), asSlice(config), std::move(completion));
        });
  }

  Future<Nothing> isolate(const ContainerID& containerId, pid_t pid) override
  {
    return answerLater<NothingCompletion>(
        [&](unique_ptr<NothingCompletion>& completion) {
          const string id = containerId.SerializeAsString();
          rust->isolate(asSlice(id), pid, std::move(completion));
        });
  }

  Future<ContainerLimitation> watch(const ContainerID& containerId) override
  {
    return answerLater<LimitationCompletion>(
        [&](unique_ptr<LimitationCompletion>& completion) {
          const string id = containerId.SerializeAsString();
          rust->watch(asSlice(id), std::move(completion));
        });
  }

  Future<Nothing> cleanup(const ContainerID& containerId) override
  {
    return answerLater<NothingCompletion>(
        [&](unique_ptr<NothingCompletion>& completion) {
          const string id = containerId.SerializeAsString();
          rust->cleanup(asSlice(id), std::move(completion));
        });
  }

  // A volume has no size that a task's resources could change, but the agent
  // waits for this before it hands a task to an executor. The third argument
  // is not there before Mesos 1.10: it must not be looked at.
  Future<Nothing> update(
      const ContainerID& containerId,
      const Resources&,
      const google::protobuf::Map<string, Value::Scalar>&) override
  {
    return answerLater<NothingCompletion>(
        [&](unique_ptr<NothingCompletion>& completion) {
          const string id = containerId.SerializeAsString();
          rust->update(asSlice(id), std::move(completion));
        });
  }

  // Mesos merges the answers of all isolators, and sets the time itself; but
  // the field is required.
  Future<ResourceStatistics> usage(const ContainerID&) override
  {
    return answerNow<ResourceStatistics>([] {
      ResourceStatistics statistics;
      statistics.ParseFromString(timestampedStatistics(now()));
      return statistics;
    });
  }

  // A task does not become TASK_RUNNING before this is answered.
  Future<ContainerStatus> status(const ContainerID&) override
  {
    return answerNow<ContainerStatus>([] { return ContainerStatus(); });
  }

private:
  // The fallible part of the override above.
  void recover(
      const vector<ContainerState>& states,
      const hashset<ContainerID>& orphans,
      unique_ptr<NothingCompletion>& completion)
  {
    vector<string> stateMessages;
    vector<string> orphanMessages;
    std::optional<string> refusal = serialize(states, layout, &stateMessages);
    if (!refusal) {
      refusal = serialize(orphans, layout, &orphanMessages);
    }
    if (refusal) {
      completion->fail("extvol: " + *refusal);
      return;
    }
    rust->recover(stateMessages, orphanMessages, std::move(completion));
  }

  const rust::Box<IsolatorHandle> rust;
  const HostLayout layout;
};

} // namespace {


mesos::slave::Isolator* createIsolator(
    const mesos::Parameters& parameters,
    const HostLayout& layout) noexcept
{
  try {
    const string bytes = parameters.SerializeAsString();
    return new VolumeIsolator(start_isolator(asSlice(bytes)), layout);
  } catch (const std::exception& e) {
    std::cerr << "extvol: the isolator does not start: " << e.what()
              << std::endl;
  } catch (...) {
    std::cerr << "extvol: the isolator does not start" << std::endl;
  }
  return nullptr;
}

} // namespace extvol {

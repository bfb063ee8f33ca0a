// The two manifests, the only symbols that the library exports.
//
// Mesos opens the library, finds a manifest by its name, compares versions, and
// calls `compatible`. Later, on the main thread, it calls `create`, for an
// isolator only if the `--isolation` flag names it. A false or a nullptr makes
// Mesos name the module and exit; why it did so is only on stderr, where we put
// it just before.

#include <iostream>
#include <optional>
#include <string>

#include <mesos/module/anonymous.hpp>
#include <mesos/module/isolator.hpp>

#include "host_check_shim.hpp"
#include "isolator_shim.hpp"
#include "master_shim.hpp"

namespace extvol {

namespace {

template <typename F>
bool holds(const char* module, F&& refuse) noexcept
{
  try {
    const std::optional<std::string> refusal = refuse();
    if (!refusal) {
      return true;
    }
    std::cerr << "extvol: " << module << " does not fit this Mesos: "
              << *refusal << std::endl;
  } catch (...) {
    std::cerr << "extvol: " << module << " could not check this Mesos"
              << std::endl;
  }
  return false;
}


bool masterIsCompatible()
{
  return holds("org_extvol_VolumeLeaseMaster", [] {
    return refuseMaster(hostExpectations());
  });
}


bool checkAgent(HostLayout* layout)
{
  return holds("org_extvol_VolumeIsolator", [=] {
    return refuseAgent(hostExpectations(), layout);
  });
}


bool agentIsCompatible()
{
  HostLayout layout;
  return checkAgent(&layout);
}


// Both look again: `create` must not depend on Mesos having asked `compatible`.
mesos::modules::Anonymous* createMaster(const mesos::Parameters& parameters)
{
  return masterIsCompatible() ? createMasterModule(parameters) : nullptr;
}


mesos::slave::Isolator* createAgent(const mesos::Parameters& parameters)
{
  HostLayout layout;
  return checkAgent(&layout) ? createIsolator(parameters, layout) : nullptr;
}

} // namespace {

} // namespace extvol {


mesos::modules::Module<mesos::modules::Anonymous> org_extvol_VolumeLeaseMaster(
    MESOS_MODULE_API_VERSION,
    extvol::claimedMesosVersion(extvol::hostExpectations()),
    "mesos-extvol",
    "",
    "Watches which agent holds which external volume and still answers",
    extvol::masterIsCompatible,
    extvol::createMaster);


mesos::modules::Module<mesos::slave::Isolator> org_extvol_VolumeIsolator(
    MESOS_MODULE_API_VERSION,
    extvol::claimedMesosVersion(extvol::hostExpectations()),
    "mesos-extvol",
    "",
    "Mounts external volumes under leases that no two agents share",
    extvol::agentIsCompatible,
    extvol::createAgent);

// What the glue takes for granted about the Mesos that loads it.
//
// Kept apart from the check and behind a function, so that a test can link the
// library with other expectations in front of the archive (see `link`) and see
// that loading is refused.

#ifndef EXTVOL_HOST_EXPECTATIONS_SHIM_HPP
#define EXTVOL_HOST_EXPECTATIONS_SHIM_HPP

#include <cstddef>
#include <string>
#include <vector>

namespace extvol {

struct HostExpectations
{
  // Releases on which a master and an agent were seen working with this
  // library. On any other the manifests claim `mesosVersion`, and Mesos itself
  // refuses, naming both versions.
  std::vector<std::string> testedVersions;
  std::string mesosVersion;

  // Where the head of a future's Data keeps its fields.
  std::size_t futureState;
  std::size_t futureDiscard;
  std::size_t futureAssociated;
  std::size_t futureAbandoned;
  int pending;
  int ready;
  int failed;

  // Where the control block of a shared_ptr counts its owners.
  std::size_t sharedPtrUseCount;

  // The isolator's virtual functions in order, after the two destructors.
  std::vector<std::string> isolatorFunctions;

  // Room that the glue gives to messages which it owns.
  std::size_t launchInfoRoom;
  std::size_t limitationRoom;
  std::size_t statisticsRoom;
  std::size_t statusRoom;
};


const HostExpectations& hostExpectations();

} // namespace extvol {

#endif // EXTVOL_HOST_EXPECTATIONS_SHIM_HPP

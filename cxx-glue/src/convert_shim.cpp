#include "convert_shim.hpp"

#include <cstring>

#include "host_check_shim.hpp"

using std::optional;
using std::size_t;
using std::string;
using std::vector;

namespace extvol {

namespace {

bool isObjectOf(const void* table, const void* object)
{
  const void* found;
  memcpy(&found, object, sizeof(found));
  return found == table;
}

} // namespace {


rust::Slice<const uint8_t> asSlice(const string& bytes)
{
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}


string timestampedStatistics(double seconds)
{
  // Field 1, eight bytes, lowest first: as x86-64 and aarch64 keep them.
  string bytes = "\x09";
  char value[sizeof(seconds)];
  memcpy(value, &seconds, sizeof(seconds));
  bytes.append(value, sizeof(value));
  return bytes;
}


optional<string> serialize(
    const vector<mesos::slave::ContainerState>& states,
    const HostLayout& layout,
    vector<string>* messages)
{
  // By the host's size of a state, not by ours: no index, no size() and no
  // range-for on this vector is right.
  const char* first = reinterpret_cast<const char*>(states.begin().base());
  const char* last = reinterpret_cast<const char*>(states.end().base());
  const size_t bytes = static_cast<size_t>(last - first);
  if (bytes % layout.containerStateSize != 0) {
    return "the container states to recover take " + std::to_string(bytes) +
      " bytes, which is no multiple of a state's " +
      std::to_string(layout.containerStateSize);
  }

  for (; first != last; first += layout.containerStateSize) {
    if (!isObjectOf(layout.containerStateTable, first)) {
      return string("a container state to recover is none");
    }
    messages->push_back(
        reinterpret_cast<const mesos::slave::ContainerState*>(first)
          ->SerializeAsString());
  }
  return std::nullopt;
}


optional<string> serialize(
    const hashset<mesos::ContainerID>& containerIds,
    const HostLayout& layout,
    vector<string>* messages)
{
  // A node is its link and then the element, so the walk does not depend on
  // the element's size.
  for (const mesos::ContainerID& containerId : containerIds) {
    if (!isObjectOf(layout.containerIdTable, &containerId)) {
      return string("an orphan to recover is no container id");
    }
    messages->push_back(containerId.SerializeAsString());
  }
  if (messages->size() != containerIds.size()) {
    return "of " + std::to_string(containerIds.size()) + " orphans " +
      std::to_string(messages->size()) + " were found";
  }
  return std::nullopt;
}

} // namespace extvol {

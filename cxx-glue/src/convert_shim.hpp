// Between Mesos's objects and bytes: messages cross the bridge serialized.

#ifndef EXTVOL_CONVERT_SHIM_HPP
#define EXTVOL_CONVERT_SHIM_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mesos/slave/isolator.hpp>

#include <stout/hashset.hpp>

#include "rust/cxx.h"

namespace extvol {

struct HostLayout;

rust::Slice<const uint8_t> asSlice(const std::string& bytes);

// The wire form of ResourceStatistics { timestamp }, its one required field, in
// seconds since the epoch.
std::string timestampedStatistics(double seconds);

// These two give a sentence instead of the messages when what they walk over
// does not look like Mesos's objects.
std::optional<std::string> serialize(
    const std::vector<mesos::slave::ContainerState>& states,
    const HostLayout& layout,
    std::vector<std::string>* messages);

std::optional<std::string> serialize(
    const hashset<mesos::ContainerID>& containerIds,
    const HostLayout& layout,
    std::vector<std::string>* messages);

} // namespace extvol {

#endif // EXTVOL_CONVERT_SHIM_HPP

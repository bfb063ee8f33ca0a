// The isolator that Mesos sees. It holds no state and decides nothing: each
// call becomes bytes and a completion, and goes to Rust.
//
// Its functions are called on any thread, and several at once: most on the
// containerizer's actor, but `prepare` and `cleanup` on the thread on which the
// isolator before has answered. They come back at once: the answers that take
// time come through a completion.

#ifndef EXTVOL_ISOLATOR_SHIM_HPP
#define EXTVOL_ISOLATOR_SHIM_HPP

#include <string>
#include <vector>

#include <mesos/slave/isolator.hpp>

#include "host_check_shim.hpp"
#include "rust/cxx.h"

namespace extvol {

// nullptr after a sentence on stderr.
mesos::slave::Isolator* createIsolator(
    const mesos::Parameters& parameters,
    const HostLayout& layout) noexcept;

} // namespace extvol {

#endif // EXTVOL_ISOLATOR_SHIM_HPP

// The master's module: Mesos creates it, leading or not, and calls it no more.

#ifndef EXTVOL_MASTER_SHIM_HPP
#define EXTVOL_MASTER_SHIM_HPP

#include <mesos/mesos.hpp>

#include <mesos/module/anonymous.hpp>

#include "rust/cxx.h"

namespace extvol {

// nullptr after a sentence on stderr.
mesos::modules::Anonymous* createMasterModule(
    const mesos::Parameters& parameters) noexcept;

// "ip:port" of this process's libprocess, "" if there is none to be told. May
// be called on any thread, once Mesos has loaded the module.
rust::String own_address() noexcept;

} // namespace extvol {

#endif // EXTVOL_MASTER_SHIM_HPP

// A function that libmesos does not have: own_address asks for it.

#define own_address sound_address
#include "master_shim.cpp"
#undef own_address

namespace process {

// Declared nowhere in Mesos.
network::inet::Address addressOfTomorrow();

} // namespace process {

namespace extvol {

rust::String own_address() noexcept
{
  process::addressOfTomorrow();
  return sound_address();
}

} // namespace extvol {

// One expectation that is wrong: the macro DEFECT changes it, as in
// -DDEFECT='expected.futureAbandoned=11'.

#define hostExpectations soundExpectations
#include "host_expectations_shim.cpp"
#undef hostExpectations

namespace extvol {

const HostExpectations& hostExpectations()
{
  static const HostExpectations& expectations = *[] {
    HostExpectations& expected = *new HostExpectations(soundExpectations());
    DEFECT;
    return &expected;
  }();
  return expectations;
}

} // namespace extvol {

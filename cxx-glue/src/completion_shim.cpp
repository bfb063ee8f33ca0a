#include "completion_shim.hpp"

#include <exception>
#include <iostream>
#include <string>

#include <stout/none.hpp>

using std::string;

namespace extvol {

template <typename T>
Completion<T>::~Completion()
{
  fail(string("extvol: the call was given up without an answer"));
}


template <typename T>
void Completion<T>::fail(rust::Str sentence) noexcept
{
  fail(string(sentence.data(), sentence.size()));
}


// Mesos's callbacks run inside `fail` and `set`. They do not throw; if one does
// all the same, neither Rust nor a destructor may see it, and the future is
// completed by then.
template <typename T>
void Completion<T>::fail(const string& sentence) noexcept
{
  if (completed) {
    return;
  }
  completed = true;
  try {
    promise.fail(sentence);
  } catch (const std::exception& e) {
    std::cerr << "extvol: failing a future threw: " << e.what() << std::endl;
  } catch (...) {
    std::cerr << "extvol: failing a future threw" << std::endl;
  }
}


template <typename T>
void Completion<T>::complete(const T& answer) noexcept
{
  if (completed) {
    return;
  }
  completed = true;
  try {
    promise.set(answer);
  } catch (const std::exception& e) {
    std::cerr << "extvol: setting a future threw: " << e.what() << std::endl;
  } catch (...) {
    std::cerr << "extvol: setting a future threw" << std::endl;
  }
}


template class Completion<Nothing>;
template class Completion<Option<mesos::slave::ContainerLaunchInfo>>;
template class Completion<mesos::slave::ContainerLimitation>;


namespace {

template <typename T>
bool parse(rust::Slice<const uint8_t> bytes, T* message) noexcept
{
  try {
    return message->ParseFromString(
        string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  } catch (...) {
    return false;
  }
}

} // namespace {


void LaunchCompletion::succeed(rust::Slice<const uint8_t> launchInfo) noexcept
{
  mesos::slave::ContainerLaunchInfo message;
  if (parse(launchInfo, &message)) {
    complete(message);
  } else {
    fail(string(
        "extvol: bug: the answer of prepare is no ContainerLaunchInfo"));
  }
}


void LimitationCompletion::fail(const string& sentence) noexcept
{
  try {
    std::cerr << "extvol: a container is not watched: " << sentence << std::endl;
  } catch (...) {
    // Nobody is left to be told.
  }
}


void LimitationCompletion::succeed(
    rust::Slice<const uint8_t> limitation) noexcept
{
  mesos::slave::ContainerLimitation message;
  if (parse(limitation, &message)) {
    complete(message);
  } else {
    Completion::fail(
        string("extvol: bug: the answer of watch is no ContainerLimitation"));
  }
}

} // namespace extvol {

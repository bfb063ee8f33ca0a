// The other end of a future that Mesos waits for.
//
// Each call into Rust that answers later hands over one of these, by
// unique_ptr. It is completed on whichever thread has the answer. It is used by
// one thread at a time, which its single owner sees to. Exactly one completion
// reaches Mesos: the first; and a completion that is dropped without an answer
// fails its future, so that nothing waits for ever. A watch is the exception.
//
// Mesos's callbacks run inside, on the completing thread, and where Mesos goes
// from one isolator to the next, so does that one's `prepare` or `cleanup`.
// Mesos's own isolators only post it to an actor. Another module might block,
// and with it the thread that has our answers. A thread in between would not
// help: the answers behind would wait in its queue instead. One thread for each
// answer would, and could not be had at the limit of threads, just when it
// counts. And the same module blocks the actor itself when it comes first: its
// own promise not to block is what keeps an agent going.
//
// A future that Mesos has discarded stays pending until it is completed here,
// so an answer that comes after a discard is as good as any other.

#ifndef EXTVOL_COMPLETION_SHIM_HPP
#define EXTVOL_COMPLETION_SHIM_HPP

#include <cstdint>
#include <string>

#include <mesos/slave/isolator.hpp>

#include <process/future.hpp>

#include <stout/nothing.hpp>
#include <stout/option.hpp>

#include "rust/cxx.h"

namespace extvol {

template <typename T>
class Completion
{
public:
  Completion() = default;
  ~Completion();

  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  process::Future<T> future() const { return promise.future(); }

  void fail(rust::Str sentence) noexcept;
  void fail(const std::string& sentence) noexcept;

protected:
  void complete(const T& answer) noexcept;

  void leavePending() noexcept { completed = true; }

private:
  process::Promise<T> promise;
  bool completed = false;
};


class NothingCompletion : public Completion<Nothing>
{
public:
  void succeed() noexcept { complete(Nothing()); }
};


class LaunchCompletion
  : public Completion<Option<mesos::slave::ContainerLaunchInfo>>
{
public:
  void succeed_without() noexcept { complete(None()); }

  // Fails the future when these are not the bytes of a ContainerLaunchInfo.
  void succeed(rust::Slice<const uint8_t> launchInfo) noexcept;
};


// Mesos destroys a container whose watch fails. So this is never failed for want
// of an answer: dropped, it leaves its future pending (and abandoned, as is what
// Mesos's own isolators without a limit answer).
class LimitationCompletion
  : public Completion<mesos::slave::ContainerLimitation>
{
public:
  ~LimitationCompletion() { leavePending(); }

  // Only tells it on stderr.
  void fail(const std::string& sentence) noexcept;

  // Fails the future when these are not the bytes of a ContainerLimitation:
  // that the container has to end was said all the same.
  void succeed(rust::Slice<const uint8_t> limitation) noexcept;
};

} // namespace extvol {

#endif // EXTVOL_COMPLETION_SHIM_HPP

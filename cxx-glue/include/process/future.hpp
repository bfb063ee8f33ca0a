// libprocess's Future and Promise, as far as the glue needs them.
//
// A Future is a shared_ptr to its Data, and nothing else. libmesos exports
// `Future()`, `set`, `fail`, `abandon` and `get` for each type that an isolator
// answers with, so Data is made, completed and freed by Mesos's own code: of
// its fields only the head is declared here, for the one byte that Promise
// writes. Nothing here may ever `new` a Data.

#ifndef __PROCESS_FUTURE_HPP__
#define __PROCESS_FUTURE_HPP__

#include <atomic>
#include <memory>
#include <string>

namespace process {

template <typename T>
class Promise;

template <typename T>
class Future
{
public:
  // Pending, and *abandoned*: process::collect() waits for such a future
  // for ever, and an agent would never finish recovering. Only Promise makes
  // one that somebody is going to complete.
  Future();

  // The value of a future that is ready; waits otherwise.
  const T& get() const;

private:
  friend class Promise<T>;

  enum State
  {
    PENDING,
    READY,
    FAILED,
    DISCARDED,
  };

  // The head of the real one: callbacks and the result follow.
  struct Data
  {
    std::atomic_flag lock;
    State state;
    bool discard;
    bool associated;
    bool abandoned;
  };

  bool set(const T& _t);
  bool fail(const std::string& _message);
  bool abandon(bool propagating = false);

  std::shared_ptr<Data> data;
};


template <typename T>
class Promise
{
public:
  // The same as the real one: unsets what the empty constructor of Future
  // sets. Nobody else has the future yet, so no lock is needed.
  Promise() { f.data->abandoned = false; }

  virtual ~Promise() { f.abandon(); }

  Promise(const Promise& that) = delete;
  Promise& operator=(const Promise&) = delete;

  // These return false when the future was completed before. A future on
  // which Mesos called `discard()` is still pending, and takes the value.
  bool set(const T& t) { return f.set(t); }
  bool fail(const std::string& message) { return f.fail(message); }

  Future<T> future() const { return f; }

private:
  Future<T> f;
};

} // namespace process {

#endif // __PROCESS_FUTURE_HPP__

// The sanitizers' settings for a mesos-node that is linked with them. In the
// program, because variables would reach the tasks as well.

extern "C" const char* __asan_default_options() {
  // At exit, that is of the container helper or after a refusal, libmesos still holds
  // hundreds of its own objects, and never unloads a module.
  return "detect_leaks=0";
}

extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

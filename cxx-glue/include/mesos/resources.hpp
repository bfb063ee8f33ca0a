// Resources are only ever passed by, as a reference that nobody follows.

#ifndef __MESOS_RESOURCES_HPP__
#define __MESOS_RESOURCES_HPP__

namespace mesos {

class Resources;

} // namespace mesos {

#endif // __MESOS_RESOURCES_HPP__

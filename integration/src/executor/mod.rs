//! A command executor: runs one command task under the agent, over the v1 executor HTTP API.

//! A folder of YAML objects in place of an API server.

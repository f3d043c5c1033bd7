//! From the inventory to ResourceSlices: a pure mapping, and the publisher that writes differences.

//! Wire formats: only the messages and fields Netferry uses, each with its source.

//! Next hops: which MAC address and interface lead to each backend.
//!
//! Owns netlink. Facts about links, addresses, routes and neighbours come in here and leave as
//! plain values ([`Link`], [`NextHop`]); nothing outside this module knows netlink's messages.

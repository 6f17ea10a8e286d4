//! The local path's structure: equal work for an unknown client and a wrong secret.

//! mutandis

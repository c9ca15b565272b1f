#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/jwt.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("jwt"), |bytes: &[u8]| target::run(bytes));

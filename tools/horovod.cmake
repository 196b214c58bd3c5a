# Builds Horovod 0.28.1 with a current PyTorch, its sources untouched.
#
# Horovod hard-codes C++14; PyTorch's headers have needed C++17 since 2.1 and C++20 since 2.13. CMake reads this file
# twice: as CMAKE_TOOLCHAIN_FILE and, through the next line, again right after it has identified the compiler. Only
# then can "the flag that means C++14" be given another meaning.
set(CMAKE_PROJECT_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")

# Without debug information: 1.4 MB instead of 51 MB.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG" CACHE STRING "")

# The wheel is cached and shared between environments: look for an MPI in the environment it is installed in
# (from lib/pythonX.Y/site-packages/horovod/torch up to lib), never in the one it was built in.
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../..")

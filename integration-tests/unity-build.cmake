# Makes CMake compile the source files of Bitcoin Core's largest library in groups of eight (unity build), which parses
# headers less often. Together with the compiler option `-O1`, this reduces the build time to less than half. CMake
# includes this file at Bitcoin Core's `project()` command, before the targets exist. The function `_unity_build` is
# therefore called at the end of the configuration.
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL _unity_build)
function(_unity_build)
    set_target_properties(bitcoin_node PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # chainstate.cpp is compiled on its own, because it includes a header that has the same include guard as another header.
    set_source_files_properties("${CMAKE_SOURCE_DIR}/src/node/chainstate.cpp"
        TARGET_DIRECTORY bitcoin_node PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# Makes CMake compile the source files of Bitcoin Core's larger libraries in groups of eight (unity build), which parses
# headers less often. Together with the compiler options that `bitcoin-node` and `kernels/node-arm64` pass, this reduces
# the processor time of the build to half. CMake includes this file at Bitcoin Core's `project()` command, before the
# targets exist. The function `_unity_build` is therefore called at the end of the configuration.
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL _unity_build)
function(_unity_build)
    set_target_properties(bitcoin_node bitcoin_common bitcoin_util bitcoin_consensus bitcoin_ipc leveldb
        PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # Two files are compiled on their own: chainstate.cpp includes a header that has the same include guard as another
    # header, and coinstatsindex.cpp defines a type with the same name as a type in blockfilterindex.cpp.
    set_source_files_properties("${CMAKE_SOURCE_DIR}/src/node/chainstate.cpp" "${CMAKE_SOURCE_DIR}/src/index/coinstatsindex.cpp"
        TARGET_DIRECTORY bitcoin_node PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

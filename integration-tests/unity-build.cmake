# Compiles the largest library of Bitcoin Core in eight files at a time, which parses its headers less often: with `-O1`, this
# takes less than half of the time. Included at the `project()` of the source, whose targets do not exist yet.
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL _unity_build)
function(_unity_build)
    set_target_properties(bitcoin_node PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # This file and another one include two headers with the same guard.
    set_source_files_properties("${CMAKE_SOURCE_DIR}/src/node/chainstate.cpp"
        TARGET_DIRECTORY bitcoin_node PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

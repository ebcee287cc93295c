"""Serving: a page in which a person walks through a world, and the session API behind it.

A file imports files of its own row and of rows below.

    who walks           web/ the page · client from Python · play in a terminal · film without a server
    in front            router one address · fleet its servers · relay what goes through · moving · pod_cost
    a server            app the command · api requests · stream a walk's WebSocket
    its walks           session one walk · pace · scheduler whose turn it is · worker its thread · transfer · snapshots
    at the port         listener · gate · limits · reception hello and refusals · schema bodies · door uploaded pictures
    what walks          world what an engine is · engine the student · export · decoding · graphs · ranks several GPUs
    everywhere          access keys, tokens, refusals · wire messages and frames · images · metrics · logs · config
"""

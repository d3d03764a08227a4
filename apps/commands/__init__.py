"""The commands of ``mmslm`` that are more than a call, a file each: ``add(command)`` says what a command takes, and the
handler beside it imports the room that does the work only when it runs.
"""

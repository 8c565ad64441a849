from underway.worker.main import main

main()
